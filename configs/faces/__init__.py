"""The attention U-Net on faces, in its two variants."""
