"""Cloister: fine-tune models on data that nobody may see.

Start reading at ARCHITECTURE.md; the main path of one job is
``cli`` → ``control`` → ``node`` → ``workload`` → ``broker`` → ``workload.release``.
"""

__version__ = "0.1.0"
