"""ComfyUI-MicroCinema. The nodes come with the next release; until then the pack is inert inside a host."""

NODE_CLASS_MAPPINGS: dict[str, type] = {}
