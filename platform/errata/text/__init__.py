"""Text as users write it: dialogues, the rules for prompts and targets, how an answer follows a prompt, and equal answers."""
