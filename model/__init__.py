"""What a trained model is: architecture, preprocessing, heat maps, checkpoints, predictions."""
