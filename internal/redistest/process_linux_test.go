package redistest

import (
	"bufio"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A server, or a sentinel, does not outlive its test binary, even one that is killed and can clean up nothing.
func TestServersDieWithAKilledTestBinary(t *testing.T) {
	need(t)
	const says = "server at "
	if os.Getenv("REDISTEST_CHILD") == "1" { // the binary that will be killed
		sentinel := &process{dir: t.TempDir(), conf: []string{}}
		require.NoError(t, sentinel.launch(false))
		_, _ = os.Stdout.WriteString(says + Start(t).Addr + " " + sentinel.addr() + "\n")
		select {}
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$") //nolint:gosec // it is this very program
	cmd.Env = append(os.Environ(), "REDISTEST_CHILD=1")
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	both := ""
	for lines := bufio.NewScanner(out); both == "" && lines.Scan(); {
		if rest, ok := strings.CutPrefix(lines.Text(), says); ok {
			both = rest
		}
	}
	for _, addr := range strings.Fields(both) {
		require.NoError(t, dial(t, addr), "the child's server answers on %q", addr)
	}
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait() // the error says that it was killed
	for _, addr := range strings.Fields(both) {
		for end := time.Now().Add(startTime); dial(t, addr) == nil; {
			require.False(t, time.Now().After(end), "the server on %s lives on", addr)
		}
	}
}

func dial(t *testing.T, addr string) error {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		return err
	}
	return c.Close()
}
