"""Our local training beside a plain PyTorch loop: same model, data, order, steps, precision."""
