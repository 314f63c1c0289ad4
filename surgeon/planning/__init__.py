"""From an anatomy and a recipe to a plan: channel maps, scales, parameter transforms, native config."""
