"""Reading fine-tuning sets and turning them into token ids and loss masks."""
