"""Files of one kind to tensors: sound, images, frames, video, text, arrays."""
