package redistest

import (
	"os"
	"syscall"
)

// attributes ties the server's life to ours: the kernel kills it when we die, however we die. Strictly it does so when the thread
// dies that started the server; the accepted risk is a test that starts one from a goroutine locked to its thread and then ends it.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}

func pause(p *os.Process) error  { return p.Signal(syscall.SIGSTOP) }
func resume(p *os.Process) error { return p.Signal(syscall.SIGCONT) }
