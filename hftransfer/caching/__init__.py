"""What lies below the boundary: computed once, kept, and fed to the part that learns."""
