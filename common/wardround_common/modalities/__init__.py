"""What an example is made of, and how it becomes tensors: one file a modality."""
