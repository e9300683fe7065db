"""What the paper and the work around it claim, each checked by an experiment in the miniature world."""
