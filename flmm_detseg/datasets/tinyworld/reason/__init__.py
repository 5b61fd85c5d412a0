"""TinyWorld's second reasoning set: queries whose answer has to be worked out from the scene, with masks or without."""
