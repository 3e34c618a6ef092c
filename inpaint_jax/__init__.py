"""GAN image inpainting in JAX and Flax: masks, models, losses, training regimes and exact resumption."""
