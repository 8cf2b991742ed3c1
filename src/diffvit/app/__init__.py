"""The explorer: a web page on this machine to look inside models. Gradio is imported where the page is built."""
