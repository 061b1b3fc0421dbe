"""One run in several processes, as `torchrun` starts them: batches cut into shares, or latents cut into shards."""
