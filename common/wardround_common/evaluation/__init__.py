"""What a model is worth at a site: scores, intervals over subjects, and a plain verdict."""
