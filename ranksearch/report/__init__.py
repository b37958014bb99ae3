"""A study as one page to read: its facts as data, the page that shows them, figures for papers, and a live view."""
