"""The production core under a virtual clock, in a modelled world (docs/simulation.md).

agenda.py    virtual time
law.py       what the target chooses: a function of the tokens alone, so every true answer is known
target.py, drafter.py, guessing.py   the workers, as their protocols have them
link.py      sessions between the scheduler and a worker, and what a network does to them
scheduler.py the process around a core: its clock, its timer, its links
client.py    users: they ask, vanish, come back with what they have
cell.py      all of these together

The fault simulation: mischief.py (what goes wrong, and when), schedule.py (one seeded schedule), oracle.py (what must
hold whatever happens), campaign.py (many schedules), trace.py (what a failing one looked like).
"""
