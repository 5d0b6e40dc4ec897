"""What every stage shares and no stage owns: data, training loop, checkpoints."""
