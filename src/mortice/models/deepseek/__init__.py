"""DeepSeek-V2 and V3, and what is shaped like them."""
