"""CLIP: its image encoder and its zero-shot classifier, beside a supervised ResNet-50."""
