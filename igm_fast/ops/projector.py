"""To come: operators of the projector."""
