"""Which settings are best: many trainings, each a Config, chosen by Keras Tuner. Frees the user from trying by hand, and from believing luck.

In: a base Config and a space over its dotted keys. Out: a folder with every trial, the winner as a TOML file, and a report that says by how much the
winner beats the base on the same test rows, re-trained with several seeds. Refuses: spaces that do not fit the config tree, an objective that no run
reports, the folder of another search.

Reads in the order of the flow: `space` (the door), `objective`, `records` (what lies in the folder), `trial` (one training, a process of its own),
`runner` (that process, watched, pruned, retried), `oracles` and `tuner` (Keras Tuner), `chief` (several machines), `final` (the winner against the
base), `hparams`, `importance`, `pictures`, `report`, `session` (all of it in turn), `command`.

Nothing here trains or touches TensorFlow in the process of the search: its memory does not grow with the trials.
"""
