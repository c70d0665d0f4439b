"""What a bundle is: bytes, keys and a time go in, a VerifiedBundle comes out. No async, no SQL, no clock of its own."""
