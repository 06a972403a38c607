"""What agents have that is no training data: conversations, configs, instances."""
