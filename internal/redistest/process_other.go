//go:build !unix

package redistest

import (
	"errors"
	"os"
	"syscall"
)

// attributes has nothing to tie the server's life to ours with: a killed test binary leaves its servers behind here.
func attributes() *syscall.SysProcAttr { return nil }

func pause(*os.Process) error  { return errors.ErrUnsupported }
func resume(*os.Process) error { return errors.ErrUnsupported }
