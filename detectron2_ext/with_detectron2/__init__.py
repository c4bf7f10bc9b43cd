"""At home in Detectron2 where that is installed; nothing outside this folder needs it."""
