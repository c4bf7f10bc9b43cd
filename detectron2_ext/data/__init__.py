"""Training and test data: annotation files, images and the views of them, their order, loaders."""
