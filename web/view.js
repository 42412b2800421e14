// The host fits a template into the window, however small its words become; ours open at 100 %, as they were laid out.
import { app } from "../../scripts/app.js";

app.registerExtension({
    name: "MicroCinema.View",
    afterConfigureGraph() {
        const { extra } = app.graph;
        if (!extra?.microcinemaView) return;
        Object.assign(app.canvas.ds, extra.microcinemaView);
        app.canvas.setDirty(true, true);
        delete extra.microcinemaView; // once: a workflow saved from it keeps the person's own view
    },
});
