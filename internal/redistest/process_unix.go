//go:build unix && !linux

package redistest

import (
	"os"
	"syscall"
)

// attributes has nothing to tie the server's life to ours with: a killed test binary leaves its servers behind here.
func attributes() *syscall.SysProcAttr { return nil }

func pause(p *os.Process) error  { return p.Signal(syscall.SIGSTOP) }
func resume(p *os.Process) error { return p.Signal(syscall.SIGCONT) }
