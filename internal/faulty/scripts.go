package faulty

import (
	"crypto/sha1" //nolint:gosec // the name Redis gives a script; nothing secret hangs on it
	"encoding/hex"
	"os"
	"path/filepath"
)

// Script returns the name that rules know one of the library's scripts by: the SHA-1 of its text, which is guard.lua and then its own
// file (see Text). dir is the path to layers/lua.
func Script(dir, name string) (string, error) {
	src, err := Text(dir, name)
	sum := sha1.Sum([]byte(src)) //nolint:gosec // a name, not a secret
	return hex.EncodeToString(sum[:]), err
}

// Text returns one of the library's scripts ("acquire", "fill", …) as it is sent. dir is the path to layers/lua.
func Text(dir, name string) (string, error) {
	guard, err := os.ReadFile(filepath.Join(dir, "guard.lua")) //nolint:gosec // a test names it
	if err != nil {
		return "", err
	}
	own, err := os.ReadFile(filepath.Join(dir, name+".lua")) //nolint:gosec // a test names it
	return string(guard) + string(own), err
}
