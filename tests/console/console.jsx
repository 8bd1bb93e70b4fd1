import { WavMediaManager } from "@pipecat-ai/small-webrtc-transport";
import { ConsoleTemplate, ThemeProvider } from "@pipecat-ai/voice-ui-kit";
import { createRoot } from "react-dom/client";

window.serverMessages = [];

// The transport's other media manager loads Daily's code from the network.
createRoot(document.getElementById("root")).render(
  <ThemeProvider>
    <ConsoleTemplate
      transportType="smallwebrtc"
      transportOptions={{ mediaManager: new WavMediaManager() }}
      connectParams={{ webrtcUrl: "/api/offer" }}
      onServerMessage={(data) => window.serverMessages.push(data)}
    />
  </ThemeProvider>,
);
