"""Our simulator beside Flower's on Ray and a bare PyTorch loop: same model, data, steps, seeds."""
