"""From annotation files and images to the batches that training and testing see."""
