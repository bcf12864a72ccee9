"""A manifest as text."""

PINNED = f"""
base_hash = "{"0" * 64}"
strategies = ["fedavg"]
codecs = ["none"]

[model]
name = "tiny"

[task]
name = "image_classification"

[partition]
name = "iid"
num_clients = 3

[[data]]
name = "digits"
classes = [0, 1, 2]

[adapter]
names = ["lora"]
targets = ["attention.q_proj"]
max_rank = 2

[train]
max_local_steps = 3

[rounds]
max_rounds = 3
least_cohort = 2

[privacy]
unit = "client"
max_clip = 1.0
max_epsilon = 8.0
max_delta = 1e-5
lifetime_epsilon = 16.0
lifetime_delta = 1e-5
"""
