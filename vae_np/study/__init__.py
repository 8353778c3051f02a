"""What the lessons measure with: metrics, priors, pictures, a codec and more."""
