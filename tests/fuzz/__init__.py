"""Fuzzing of every parser of untrusted bytes.

``targets`` says what there is: for each parser how bytes reach it, and valid inputs to begin with. ``mutation`` changes
them. ``guided`` runs one parser under atheris, which watches which lines an input reaches, in a process of its own.
``test_fuzz_parsers`` is the suite: a few hundred inputs a parser always, over a million in the slow suite.
"""
