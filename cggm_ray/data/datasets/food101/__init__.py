"""Food-101: images and texts, encoded by a frozen ViT and BERT."""
