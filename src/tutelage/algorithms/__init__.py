"""What an algorithm is: how credit is assigned, and which loss."""
