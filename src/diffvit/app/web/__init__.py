"""The page itself: all that needs Gradio (extra ``app``); nothing outside this folder does."""
