"""People's work: a workspace of prompts, tasks and answers, its pages and files, and how far labelers agree."""
