"""pix2pix and its variants with VGG16: generator, discriminator and perceptual loss."""
