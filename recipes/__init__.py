"""Training scripts to run, read and copy: `accelerate launch -m recipes.NAME`."""
