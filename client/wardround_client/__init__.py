"""The hospital's side of Wardround: data, training and what may leave the site."""
