"""The way to the recipe: look at the data, compare networks, tune the one that won."""
