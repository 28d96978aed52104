"""What a node must survive: kills at every stage, failing system calls, full disks, wrong clocks.

``python -m tests.chaos.kills --help`` runs the long version of the kills, and goes on where it
stopped; ``python -m tests.chaos.soak --help`` a day of hospital load.
"""
