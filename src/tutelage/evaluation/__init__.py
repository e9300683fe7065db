"""How good did it get: answers to held-out prompts, win rates with intervals, KL spent, and the alignment tax."""
