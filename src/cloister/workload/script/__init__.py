"""A training program of a party's own, for what Cloister's methods don't cover: convolutional, recurrent, tabular …

The program is a sealed folder whose digest stands in the contract, so every party agreed to this code and no other. It
runs in a child process of the workload that has neither keys nor a way out: ``confine`` takes sockets and every
change of a file from it, ``channel`` is the one descriptor it has, ``child`` is its side of that, ``interface`` what
the program sees (docs/spec/script.md), ``host`` the workload's side: data in, checkpoints, figures and files out.

Nothing is imported here: the child process does without the libraries of Cloister's own methods.
"""
