"""What studies the system itself: the only room that knows the miniature world and its gold preference."""
