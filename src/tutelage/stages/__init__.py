"""The stages of the paper, each a function over files: pretrain, sft, collect, reward, online (ppo)."""
