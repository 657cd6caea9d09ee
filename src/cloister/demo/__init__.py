"""The demonstration: two organizations, one contract, one attested training, all on this machine.

The tour: ``data`` makes the hospital's rows (invented from a seed; no real person is in them) from the sentences
in ``phrases``; ``python -m cloister.demo`` runs the whole path of one job with them.
"""
