"""What goes into the next pass, and when. Part of the core: no I/O.

policy.py says what a policy is; price.py is the one that serves, patience.py the one that waits for every draft.
"""
